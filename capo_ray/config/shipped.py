"""Names of the models in the package, by role."""

SHIPPED = {"policy": ("laptop", "discovery", "novice"), "critic": ("laptop", "novice")}
