"""The parts that decoders are composed of: norms, projections, rotations, attention and MLPs of one block."""
