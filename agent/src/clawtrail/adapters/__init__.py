"""From a foreign agent's records to events, one module per agent."""
