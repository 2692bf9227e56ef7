"""Training networks: the loop that resumes, robust teachers, and derived networks."""
