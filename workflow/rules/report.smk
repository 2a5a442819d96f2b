rule render_table:
    """Show the scores of all runs and baselines with their protocol."""
    input:
        TARGETS.scores(),
    output:
        tabled(
            LAYOUT.table("scores"),
            "scores",
            "2 Scores",
            {"table": "scores to read"},
            {"table": "scores with the whole protocol (a csv to download)"},
        ),
    log:
        LAYOUT.log("render_table/scores"),
    conda:
        "../../envs/udpm.yaml"
    params:
        stem=subpath(output[0], strip_suffix=".html"),
    shell:
        "udpm table --output {params.stem:q} -- {input:q} > {log:q} 2>&1"


# Needs neither data nor training.
rule count_cost:
    """Count the multiply-adds of an image and the parameters of the networks."""
    output:
        tabled(
            LAYOUT.table("cost"),
            "cost",
            "Cost",
            {"table": "cost to read"},
            {"table": "cost, every call and network (a csv to download)"},
        ),
    log:
        LAYOUT.log("count_cost/cost"),
    conda:
        "../../envs/udpm.yaml"
    params:
        experiments=list(PLAN.experiments),
        digests=INPUTS.model_digests,
        stem=subpath(output[0], strip_suffix=".html"),
    shell:
        "udpm cost {params.experiments:q} --output {params.stem:q} > {log:q} 2>&1"


# Figures of a run by name: title in the report, which sorts by the number; input; params that name the command's input
# (content.py counts them); and the command's argument if it is not the first input.
RUN_FIGURES = {
    "samples": ("1 samples", INPUTS.samples, {"samples": INPUTS.sample_set}, None),
    "chain": ("5 denoising chain", LAYOUT.samples("_chain.npz"), {}, None),
    "curves": ("2 training curves", LAYOUT.completion(), {"run": subpath(input[0], parent=True)}, LAYOUT.metrics()),
    "selection": ("3 milestones", LAYOUT.choice(), {}, None),
    "diagnosis": ("4 diagnosis", LAYOUT.diagnosis(), {}, None),
}
for figure, (title, source, of, given) in RUN_FIGURES.items():

    rule:
        """Draw a figure of a run."""
        name:
            f"render_{figure}"
        input:
            source,
        output:
            drawn_of(LAYOUT.figure(f"{{experiment}}/seed{{seed}}/{figure}"), figure, title),
        log:
            LAYOUT.log(f"render_{figure}/{{experiment}}_seed{{seed}}"),
        localrule: True
        conda:
            "../../envs/udpm.yaml"
        params:
            **of,
            stem=subpath(output[0], strip_suffix=".png"),
            figure=figure,
            extra=given or subpath(input[0]),
        shell:
            "udpm figure {params.figure:q} --output {params.stem:q} -- {params.extra:q} > {log:q} 2>&1"


rule render_latents:
    """Draw what the noise maps of a run's latents control."""
    input:
        LAYOUT.latents(),
    output:
        drawn_of(LAYOUT.figure("{experiment}/seed{seed}/latents_{kind}"), "latents", "9 latents: {kind}"),
    log:
        LAYOUT.log("render_latents/{experiment}_seed{seed}_{kind}"),
    conda:
        "../../envs/udpm.yaml"
    params:
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure latents --output {params.stem:q} -- {input:q} > {log:q} 2>&1"


rule render_schedule:
    """Draw the noise schedule of an experiment."""
    input:
        INPUTS.first_run_config,
    output:
        drawn_of(LAYOUT.figure("{experiment}/schedule"), "schedule", "7 schedule", seed="all"),
    log:
        LAYOUT.log("render_schedule/{experiment}"),
    conda:
        "../../envs/udpm.yaml"
    params:
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure schedule --output {params.stem:q} -- {input:q} > {log:q} 2>&1"


rule render_forward:
    """Draw the forward process of an experiment on images of its data set."""
    input:
        config=INPUTS.first_run_config,
        dataset=INPUTS.dataset_record,
    output:
        drawn_of(LAYOUT.figure("{experiment}/forward"), "forward", "8 forward process", seed="all"),
    log:
        LAYOUT.log("render_forward/{experiment}"),
    conda:
        "../../envs/udpm.yaml"
    params:
        dataset=subpath(input.dataset, parent=True),
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure forward --dataset {params.dataset:q} --output {params.stem:q} -- {input.config:q} > {log:q} 2>&1"


rule render_neighbours:
    """Draw samples of a run next to their nearest training images."""
    input:
        samples=INPUTS.samples,
        dataset=INPUTS.dataset_record,
    output:
        drawn_of(LAYOUT.figure("{experiment}/seed{seed}/neighbours"), "neighbours", "6 nearest training images"),
    log:
        LAYOUT.log("render_neighbours/{experiment}_seed{seed}"),
    conda:
        "../../envs/udpm.yaml"
    resources:
        **JOBS.neighbours,
    params:
        samples=INPUTS.sample_set,
        dataset=subpath(input.dataset, parent=True),
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure neighbours --dataset {params.dataset:q} --output {params.stem:q} -- {params.samples:q} > {log:q} 2>&1"


# The workflow makes all results of the study's experiments that the tables need; of other experiments it shows what
# exists, and "not run" otherwise.
rule render_paper_table:
    """Show published numbers next to measured ones."""
    input:
        PAPER.published,
        PAPER.material,
    output:
        tabled(
            LAYOUT.table("paper/{table}"),
            "paper",
            "4 Paper",
            {"table": "{table}", "format": "to read"},
            {"table": "{table}", "format": "full precision (a csv to download)"},
        ),
    log:
        LAYOUT.log("render_paper_table/{table}"),
    wildcard_constraints:
        table="|".join(PAPER.names),
    conda:
        "../../envs/udpm.yaml"
    params:
        results=subpath(output[0], ancestor=3),
        experiments=PAPER.options,
        folder=subpath(output[0], parent=True),
    shell:
        "udpm paper {wildcards.table:q} --results {params.results:q} {params.experiments:q} --output {params.folder:q} > {log:q} 2>&1"


# Uses freshly initialized networks: needs neither weights nor data.
rule measure_speed:
    """Measure how fast an experiment's networks sample on this device."""
    input:
        INPUTS.first_run_config,
    output:
        LAYOUT.speed(),
    log:
        LAYOUT.log("measure_speed/{experiment}"),
    conda:
        "../../envs/udpm.yaml"
    threads: JOBS.sampling_threads
    resources:
        **JOBS.sampling,
    shell:
        "udpm bench sample {wildcards.experiment:q} --output {output:q} > {log:q} 2>&1"


rule render_tradeoff:
    """Draw FID against the multiply-adds of an image, published and measured."""
    input:
        published=PAPER.published_files,
        scores=PAPER.tradeoff_scores,
    output:
        drawn(
            LAYOUT.figure("paper/tradeoff"), "tradeoff", "4 Paper", table="FID against multiply-adds", format="figure"
        ),
    log:
        LAYOUT.log("render_tradeoff/tradeoff"),
    conda:
        "../../envs/udpm.yaml"
    params:
        results=subpath(output[0], ancestor=3),
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure tradeoff --results {params.results:q} --output {params.stem:q} > {log:q} 2>&1"


# Reads the study's run records and all scores of the tables, and lists those that are missing.
rule summarize:
    """Write a page on the study: runs, hardware, main numbers, and missing results."""
    input:
        runs=PAPER.runs,
        scores=PAPER.all_scores,
    output:
        report(
            LAYOUT.overview,
            caption="../report/overview.rst",
            category="1 Overview",
            labels={"page": "what ran, and its results"},
        ),
        LAYOUT.summary,
    log:
        LAYOUT.log("summarize/summary"),
    conda:
        "../../envs/udpm.yaml"
    params:
        experiments=PAPER.experiments,
        folder=subpath(output[0], parent=True),
    shell:
        "udpm summary {params.experiments:q} --results {params.folder:q} --output {params.folder:q} > {log:q} 2>&1"


rule write_card:
    """Write the model card of a run."""
    input:
        run=LAYOUT.completion(),
        config=LAYOUT.run_config(),
        scores=PAPER.run_scores,
    output:
        LAYOUT.card(),
    log:
        LAYOUT.log("write_card/{experiment}_seed{seed}"),
    conda:
        "../../envs/udpm.yaml"
    params:
        run=subpath(input.run, parent=True),
        scores=lambda wildcards, input: [word for path in input.scores for word in ("--score", path)],
    shell:
        "udpm card {params.scores:q} --output {output:q} -- {params.run:q} > {log:q} 2>&1"


# Runs before all other jobs, so that schedules and hours can be read before anything trains.
rule plan_sweep:
    """Write the plan of a sweep: schedules and hours of its points."""
    output:
        report(
            LAYOUT.sweep("plan.html"),
            caption="../report/sweep_plan.rst",
            category="5 Sweeps",
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
            category="5 Sweeps",
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
        drawn(LAYOUT.sweep("heat_{grid}"), "sweep_heat", "5 Sweeps", sweep="{sweep}", what="heat map: {grid}"),
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
        drawn(LAYOUT.sweep("strip"), "sweep_strip", "5 Sweeps", sweep="{sweep}", what="the same images of every point"),
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
