"""The support package of the course: data, models, learners, jobs, runs and figures."""
