"""What evaluation harnesses of others call: a model with one method on it that answers samples."""
