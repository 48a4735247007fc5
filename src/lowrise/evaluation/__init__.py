"""Models measured side by side: loss on texts, and tasks through lm-eval."""
