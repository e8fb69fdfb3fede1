"""Commands end in one line and an exit code."""

import subprocess
import sys

import pytest

from liquid_policy.command import command


@pytest.mark.parametrize(('raised', 'code', 'line'), [
    (ValueError('rate: expected 100, came 0'), 1, 'tell: rate: expected 100, came 0\n'),
    (FileNotFoundError(2, 'No such file', 'a'), 1, "tell: [Errno 2] No such file: 'a'\n"),
    (KeyboardInterrupt(), 130, 'tell: stopped; run again\n')])
def test_what_goes_wrong_is_one_line(raised, code, line, capsys):
    @command('tell', 'stopped; run again')
    def main(argv=None):
        raise raised
    assert main([]) == code
    assert capsys.readouterr().err == line


def test_our_own_mistakes_keep_their_traceback():
    @command('tell')
    def main(argv=None):
        return {}['missing']
    with pytest.raises(KeyError):
        main()


def test_a_reader_that_has_heard_enough_is_no_error(tmp_path):
    program = tmp_path / 'tell.py'
    program.write_text(
        'import sys\n'
        'from liquid_policy.command import command\n'
        '@command("tell")\n'
        'def main(argv=None):\n'
        '    for line in range(100_000):\n'
        '        print(line)\n'
        '    return 0\n'
        'sys.exit(main())\n')
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait() == 1
    process.stderr.close()
