"""What a trained model is worth: exact NLL, and pictures."""
