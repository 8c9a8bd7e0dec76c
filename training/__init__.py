"""What a training run is made of: schedules, losses, the two optimisation steps, averages, and the trainer that joins them."""
