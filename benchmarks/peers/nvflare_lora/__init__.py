"""The job on NVFlare's simulator: its FedAvg recipe, its Client API, adapters both ways."""
