"""What the matrices of a model make of their rank: `lowrise inspect`."""
