"""The health of a fit: diagnosis, verdict, cure, and the choice of the count distribution."""
