"""What `torch.optim.Optimizer` lacks: roles and their parameter tuples, stacks of matrices, formats of state,
owners among ranks, updates within the backward pass, costs."""
