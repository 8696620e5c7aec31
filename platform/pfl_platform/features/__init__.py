"""What the frozen part of a backbone makes of a picture: worked out once, one picture at a time, and kept."""
