"""Learning from recorded demonstrations: bags, windows, learners. Imports without ROS."""
