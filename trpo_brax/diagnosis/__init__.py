"""What went wrong, and when: runs compared, failures replayed, numbers explained."""
