"""What is handed over: engines, their sidecars, and what describes and serves them."""
