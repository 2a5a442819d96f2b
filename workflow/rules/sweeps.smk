# Points of a sweep are experiments called SWEEP.POINT: the rules that train, sample and score serve them, too.
# A dry run prints how many points are in which state.
rule sweep:
    """Train, score and rank all points of a sweep: --config sweep=NAME."""
    input:
        lambda wildcards: SWEEP.targets("sweep", workflow.dryrun),


rule sweep_plan:
    """Show the schedules and hours of a sweep's points before anything trains: --config sweep=NAME."""
    input:
        lambda wildcards: SWEEP.targets("sweep_plan", workflow.dryrun),


# First of all jobs, since it needs none of them: schedules and hours can be read before anything trains.
rule plan_sweep:
    """Write the plan of a sweep."""
    output:
        report(
            LAYOUT.sweep("plan.html"),
            caption="../report/sweep_plan.rst",
            category="Sweeps",
            labels={"sweep": "{sweep}", "what": "plan: schedules and hours"},
        ),
        multiext(LAYOUT.sweep("plan"), ".csv", ".md", ".tex"),
    log:
        LAYOUT.log("plan_sweep/{sweep}"),
    priority: 100
    conda:
        "../../envs/udpm.yaml"
    params:
        digest=SWEEP.plan_digest,
        stem=subpath(output[0], strip_suffix=".html"),
    shell:
        "udpm sweep plan {wildcards.sweep:q} --output {params.stem:q} > {log:q} 2>&1"


rule rank_sweep:
    """Rank the points of a sweep by their scores."""
    input:
        SWEEP.scores(),
    output:
        report(
            LAYOUT.sweep("ranking.html"),
            caption="../report/sweep_ranking.rst",
            category="Sweeps",
            labels={"sweep": "{sweep}", "what": "ranking"},
        ),
        multiext(LAYOUT.sweep("ranking"), ".csv", ".md", ".tex"),
        best=LAYOUT.sweep("best.yaml"),
    log:
        LAYOUT.log("rank_sweep/{sweep}"),
    conda:
        "../../envs/udpm.yaml"
    params:
        digest=SWEEP.ranking_digest,
        results=subpath(output[0], ancestor=3),
        stem=subpath(output[0], strip_suffix=".html"),
    shell:
        "udpm sweep rank {wildcards.sweep:q} --results {params.results:q} --output {params.stem:q}"
        " --best {output.best:q} > {log:q} 2>&1"


rule draw_heat_map:
    """Draw the scores of one grid of a sweep."""
    input:
        lambda wildcards: SWEEP.scores(wildcards.grid),
    output:
        drawn(
            LAYOUT.sweep("heat_{grid}"),
            "../report/sweep_heat.rst",
            "Sweeps",
            sweep="{sweep}",
            what="heat map: {grid}",
        ),
    log:
        LAYOUT.log("draw_heat_map/{sweep}_{grid}"),
    conda:
        "../../envs/udpm.yaml"
    params:
        digest=SWEEP.grid_digest,
        results=subpath(output[0], ancestor=3),
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm sweep heat {wildcards.sweep:q} {wildcards.grid:q} --results {params.results:q}"
        " --output {params.stem:q} > {log:q} 2>&1"


rule draw_strip:
    """Draw the same images of every point of a sweep side by side."""
    input:
        SWEEP.scores(),
        SWEEP.shown_samples(),
    output:
        drawn(
            LAYOUT.sweep("strip"),
            "../report/sweep_strip.rst",
            "Sweeps",
            sweep="{sweep}",
            what="the same images of every point",
        ),
    log:
        LAYOUT.log("draw_strip/{sweep}"),
    conda:
        "../../envs/udpm.yaml"
    params:
        digest=SWEEP.ranking_digest,
        results=subpath(output[0], ancestor=3),
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm sweep strip {wildcards.sweep:q} --results {params.results:q} --output {params.stem:q} > {log:q} 2>&1"
