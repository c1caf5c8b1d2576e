"""The compiled mathematics at work: from TrainState to TrainState."""
