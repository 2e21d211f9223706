"""The demonstration: the main job, end to end, on a real model, through the portal's own doors."""
