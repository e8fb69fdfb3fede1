"""MuJoCo scenes, expert, demonstrations and evaluation. Imports without ROS."""
