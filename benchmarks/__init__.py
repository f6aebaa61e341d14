"""What federation costs, and brings, against a plain training of the same data on the same machine in the same run."""
