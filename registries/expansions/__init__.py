"""What makes a trained model larger: a file for each expansion."""
