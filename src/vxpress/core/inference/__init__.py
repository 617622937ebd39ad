"""What a trained model can be asked: one routine per question, on arrays and tensors."""
