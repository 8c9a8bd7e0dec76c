"""What a training run is made of: schedules, losses, the two optimization steps, averages, and the trainer that joins them."""
