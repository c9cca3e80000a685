"""`tgo-trl completion`: a script with which a shell completes commands, settings, choices and paths."""
