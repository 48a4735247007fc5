"""What one does with a trained model: evaluation (`export.evaluate`) and generation (`export.generate`)."""
