"""What a profile measured: scores with intervals, predictions, tables, curves, the page, the model card, MLflow's copy."""
