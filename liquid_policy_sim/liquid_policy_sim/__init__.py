"""The simulator as a ROS node with the topics of a real robot, and the demo."""
