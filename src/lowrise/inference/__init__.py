"""What one does with a trained model: evaluation and generation."""
