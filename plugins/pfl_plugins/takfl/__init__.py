"""TAKFL: task arithmetic over distilled knowledge of heterogeneous prototypes (Morafah et al., 2409.18461)."""
