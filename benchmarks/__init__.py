"""What federation costs: each module times a federated run against a plain training loop, on one machine in one run."""
