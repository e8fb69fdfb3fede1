"""Arrays of a zarr folder; they are read by `liquid_trainer.formats.zarr_arrays`."""

from liquid_trainer.formats.zarr_arrays import ZarrError, read_array

__all__ = ['ZarrError', 'read_array']
