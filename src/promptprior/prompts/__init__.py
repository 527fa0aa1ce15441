"""What is moved: how parameters become prompts, where they start, and how they are kept."""
