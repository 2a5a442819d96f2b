# Points of a sweep are experiments called SWEEP.POINT: the rules that train, sample and score serve them, too.
# A dry run tells where the points stand.
rule sweep:
    input:
        lambda wildcards: PLAN.sweep_targets("sweep", workflow.dryrun),


rule sweep_plan:
    input:
        lambda wildcards: PLAN.sweep_targets("sweep_plan", workflow.dryrun),


# First of all jobs, since it needs none of them: schedules and hours are there to read before anything trains.
rule plan_sweep:
    output:
        report(
            f"{RESULTS}/sweeps/{{sweep}}/plan.html",
            caption="../report/sweep_plan.rst",
            category="Sweeps",
            labels={"sweep": "{sweep}", "what": "plan: schedules and hours"},
        ),
        multiext(f"{RESULTS}/sweeps/{{sweep}}/plan", ".csv", ".md", ".tex"),
    log:
        f"{RESULTS}/logs/plan_sweep/{{sweep}}.log",
    priority: 100
    conda:
        "../../envs/udpm.yaml"
    params:
        digest=lambda wildcards: PLAN.sweep.plan_digest(),
        stem=subpath(output[0], strip_suffix=".html"),
    shell:
        "udpm sweep plan {wildcards.sweep:q} --output {params.stem:q} > {log:q} 2>&1"


rule rank_sweep:
    input:
        PLAN.sweep.scores() if PLAN.sweep else [],
    output:
        report(
            f"{RESULTS}/sweeps/{{sweep}}/ranking.html",
            caption="../report/sweep_ranking.rst",
            category="Sweeps",
            labels={"sweep": "{sweep}", "what": "ranking"},
        ),
        multiext(f"{RESULTS}/sweeps/{{sweep}}/ranking", ".csv", ".md", ".tex"),
        best=f"{RESULTS}/sweeps/{{sweep}}/best.yaml",
    log:
        f"{RESULTS}/logs/rank_sweep/{{sweep}}.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        digest=lambda wildcards: PLAN.sweep.ranking_digest(),
        results=subpath(output[0], ancestor=3),
        stem=subpath(output[0], strip_suffix=".html"),
    shell:
        "udpm sweep rank {wildcards.sweep:q} --results {params.results:q} --output {params.stem:q}"
        " --best {output.best:q} > {log:q} 2>&1"


rule draw_heat_map:
    input:
        lambda wildcards: PLAN.sweep.grid_scores(wildcards.grid),
    output:
        report(
            f"{RESULTS}/sweeps/{{sweep}}/heat_{{grid}}.png",
            caption="../report/sweep_heat.rst",
            category="Sweeps",
            labels={"sweep": "{sweep}", "what": "heat map: {grid}"},
        ),
        multiext(f"{RESULTS}/sweeps/{{sweep}}/heat_{{grid}}", ".svg", ".csv"),
    log:
        f"{RESULTS}/logs/draw_heat_map/{{sweep}}_{{grid}}.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        digest=lambda wildcards: PLAN.sweep.grid_digest(wildcards.grid),
        results=subpath(output[0], ancestor=3),
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm sweep heat {wildcards.sweep:q} {wildcards.grid:q} --results {params.results:q}"
        " --output {params.stem:q} > {log:q} 2>&1"


rule draw_strip:
    input:
        PLAN.sweep.scores() if PLAN.sweep else [],
        PLAN.sweep.shown_samples() if PLAN.sweep else [],
    output:
        report(
            f"{RESULTS}/sweeps/{{sweep}}/strip.png",
            caption="../report/sweep_strip.rst",
            category="Sweeps",
            labels={"sweep": "{sweep}", "what": "the same images of every point"},
        ),
        multiext(f"{RESULTS}/sweeps/{{sweep}}/strip", ".svg", ".csv"),
    log:
        f"{RESULTS}/logs/draw_strip/{{sweep}}.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        digest=lambda wildcards: PLAN.sweep.ranking_digest(),
        results=subpath(output[0], ancestor=3),
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm sweep strip {wildcards.sweep:q} --results {params.results:q} --output {params.stem:q} > {log:q} 2>&1"
