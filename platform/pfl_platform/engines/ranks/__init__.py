"""A run carried out by several processes, the ranks of a launch.

    place       which rank this process is, and where the others are
    grid        groups of ranks: G groups that each serve a client at a time, of Z shards each
    wire        messages between ranks: JSON and tensors
    hub         the service of rank 0, which holds the run folder      link    how another rank uses it
    together    how ranks agree on what happens
    assign      which group takes which task
    engine      the engine: tasks of a stage at all groups at once
    zero        the driver: backward and step by DeepSpeed, the only module that imports it
    splitting   the blocks of a backbone, spread over the ranks of a group
    start       joins a launch: everything above, in order

All ranks run the same programs; only rank 0 aggregates, prints and writes. Groups never wait for each other inside a
task, so nothing depends on how many there are.
"""
