"""From records to tables and figures. Reads records only; text tables import no torch."""
