"""What a training step costs a GPU, counted on fake tensors: on any machine, without a GPU and without arithmetic."""
