"""The arithmetic that several methods share: Adam's moments, projections, limits of growth, factor steps."""
