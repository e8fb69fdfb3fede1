"""Liquid imitation policies: interface, alignment, policy, safety filter. Imports without ROS."""
