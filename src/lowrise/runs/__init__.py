"""What a run is: its folder, its parts as the configuration asks for them, its plan, its machine."""
