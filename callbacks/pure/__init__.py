"""What callbacks show and measure, as functions of tensors: no Lightning."""
