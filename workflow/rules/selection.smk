# The milestone of least Fréchet distance, beside the end of training. Milestones are training's undeclared files: what
# depends on them depends on the run's final weights, and their iterations are the configuration's.
rule sample_milestone:
    input:
        weights=f"{RESULTS}/runs/{{experiment}}/seed{{seed}}/weights.safetensors",
        config=f"{RESULTS}/configs/{{experiment}}/selection_sampling.json",
    output:
        images=f"{RESULTS}/selection/{{experiment}}/seed{{seed}}/samples/{{iteration}}.npz",
        record=f"{RESULTS}/selection/{{experiment}}/seed{{seed}}/samples/{{iteration}}.json",
    log:
        f"{RESULTS}/logs/sample_milestone/{{experiment}}_seed{{seed}}_{{iteration}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/sample_milestone/{{experiment}}_seed{{seed}}_{{iteration}}.tsv"
    conda:
        "../../envs/udpm.yaml"
    threads: lambda wildcards: PLAN.experiment(wildcards).sampling.threads
    resources:
        **JOBS.sampling,
    params:
        usage=f"{RESULTS}/benchmarks/sample_milestone/{{experiment}}_seed{{seed}}_{{iteration}}.jsonl",
    shell:
        "udpm --usage {params.usage:q} sample --config {input.config:q} --iteration {wildcards.iteration:q}"
        " --output {output.images:q} -- {input.weights:q} > {log:q} 2>&1"


rule score_milestone:
    input:
        samples=f"{RESULTS}/selection/{{experiment}}/seed{{seed}}/samples/{{iteration}}.npz",
        record=f"{RESULTS}/selection/{{experiment}}/seed{{seed}}/samples/{{iteration}}.json",
        reference=f"{RESULTS}/references/{{experiment}}.npz",
        dataset=lambda wildcards: f"{PLAN.dataset(wildcards)}/dataset.json",
        config=f"{RESULTS}/configs/{{experiment}}/selection_scoring.json",
        extractor=PLAN.made_extractor,
    output:
        f"{RESULTS}/selection/{{experiment}}/seed{{seed}}/scores/{{iteration}}.json",
    log:
        f"{RESULTS}/logs/score_milestone/{{experiment}}_seed{{seed}}_{{iteration}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_milestone/{{experiment}}_seed{{seed}}_{{iteration}}.tsv"
    wildcard_constraints:
        experiment=PLAN.any_scored,
    conda:
        "../../envs/udpm.yaml"
    threads: lambda wildcards: PLAN.experiment(wildcards).scoring.threads
    resources:
        **JOBS.scoring,
    params:
        usage=f"{RESULTS}/benchmarks/score_milestone/{{experiment}}_seed{{seed}}_{{iteration}}.jsonl",
        dataset=subpath(input.dataset, parent=True),
        extractor=PLAN.extractor,
        features=f"{RESULTS}/features",
    shell:
        "udpm --usage {params.usage:q} score --samples {input.samples:q} --reference {input.reference:q} --extractor {params.extractor:q}"
        " --dataset {params.dataset:q} --config {input.config:q} --features {params.features:q}"
        " --output {output:q} > {log:q} 2>&1"


rule select_checkpoint:
    input:
        PLAN.milestone_scores,
    output:
        choice=f"{RESULTS}/selection/{{experiment}}/seed{{seed}}/selection.json",
        table=report(
            f"{RESULTS}/selection/{{experiment}}/seed{{seed}}/milestones.html",
            caption="../report/selection.rst",
            category="Scores",
            labels={"table": "milestones of {experiment}, seed {seed}"},
        ),
        others=multiext(
            f"{RESULTS}/selection/{{experiment}}/seed{{seed}}/milestones",
            ".csv",
            ".md",
            ".tex",
        ),
    log:
        f"{RESULTS}/logs/select_checkpoint/{{experiment}}_seed{{seed}}.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        stem=subpath(output.table, strip_suffix=".html"),
    shell:
        "udpm select --output {output.choice:q} --table {params.stem:q} -- {input:q} > {log:q} 2>&1"


rule render_selection:
    input:
        f"{RESULTS}/selection/{{experiment}}/seed{{seed}}/selection.json",
    output:
        report(
            f"{RESULTS}/figures/{{experiment}}/seed{{seed}}/selection.png",
            caption="../report/selection.rst",
            category="Figures",
            labels={
                "figure": "milestones",
                "experiment": "{experiment}",
                "seed": "{seed}",
            },
        ),
        multiext(
            f"{RESULTS}/figures/{{experiment}}/seed{{seed}}/selection", ".svg", ".csv"
        ),
    log:
        f"{RESULTS}/logs/render_selection/{{experiment}}_seed{{seed}}.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure selection --output {params.stem:q} -- {input:q} > {log:q} 2>&1"


rule sample_best:
    input:
        weights=f"{RESULTS}/runs/{{experiment}}/seed{{seed}}/weights.safetensors",
        config=f"{RESULTS}/configs/{{experiment}}/sampling.json",
        selection=f"{RESULTS}/selection/{{experiment}}/seed{{seed}}/selection.json",
        noise=PLAN.given_noise,
    output:
        images=f"{RESULTS}/samples/{{experiment}}/seed{{seed}}_best.npz",
        record=f"{RESULTS}/samples/{{experiment}}/seed{{seed}}_best.json",
    log:
        f"{RESULTS}/logs/sample_best/{{experiment}}_seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/sample_best/{{experiment}}_seed{{seed}}.tsv"
    conda:
        "../../envs/udpm.yaml"
    threads: lambda wildcards: PLAN.experiment(wildcards).sampling.threads
    resources:
        **JOBS.sampling,
    params:
        usage=f"{RESULTS}/benchmarks/sample_best/{{experiment}}_seed{{seed}}.jsonl",
    shell:
        "udpm --usage {params.usage:q} sample --config {input.config:q} --selection {input.selection:q}"
        " --output {output.images:q} -- {input.weights:q} > {log:q} 2>&1"


rule score_best:
    input:
        samples=f"{RESULTS}/samples/{{experiment}}/seed{{seed}}_best.npz",
        record=f"{RESULTS}/samples/{{experiment}}/seed{{seed}}_best.json",
        selection=f"{RESULTS}/selection/{{experiment}}/seed{{seed}}/selection.json",
        reference=f"{RESULTS}/references/{{experiment}}.npz",
        dataset=lambda wildcards: f"{PLAN.dataset(wildcards)}/dataset.json",
        config=f"{RESULTS}/configs/{{experiment}}/scoring.json",
        extractor=PLAN.made_extractor,
    output:
        f"{RESULTS}/scores/{{experiment}}/seed{{seed}}_best.json",
    log:
        f"{RESULTS}/logs/score_best/{{experiment}}_seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_best/{{experiment}}_seed{{seed}}.tsv"
    wildcard_constraints:
        experiment=PLAN.any_scored,
    conda:
        "../../envs/udpm.yaml"
    threads: lambda wildcards: PLAN.experiment(wildcards).scoring.threads
    resources:
        **JOBS.scoring,
    params:
        usage=f"{RESULTS}/benchmarks/score_best/{{experiment}}_seed{{seed}}.jsonl",
        dataset=subpath(input.dataset, parent=True),
        extractor=PLAN.extractor,
        features=f"{RESULTS}/features",
    shell:
        "udpm --usage {params.usage:q} score --samples {input.samples:q} --selection {input.selection:q} --reference {input.reference:q}"
        " --extractor {params.extractor:q} --dataset {params.dataset:q} --config {input.config:q}"
        " --features {params.features:q} --output {output:q} > {log:q} 2>&1"
