"""LoRA as a stock Flower app: the model is built in the handler, FedAvg averages adapters."""
