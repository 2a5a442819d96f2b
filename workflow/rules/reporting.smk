rule render_table:
    input:
        PLAN.scores(),
    output:
        report(
            f"{RESULTS}/tables/scores.html",
            caption="../report/scores.rst",
            category="Scores",
            labels={"table": "scores to read"},
        ),
        report(
            f"{RESULTS}/tables/scores.csv",
            caption="../report/scores.rst",
            category="Scores",
            labels={"table": "scores with the whole protocol"},
        ),
        multiext(f"{RESULTS}/tables/scores", ".md", ".tex"),
    log:
        f"{RESULTS}/logs/render_table/scores.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        stem=subpath(output[0], strip_suffix=".html"),
    shell:
        "udpm table --output {params.stem:q} -- {input:q} > {log:q} 2>&1"


# Needs neither data nor training.
rule count_cost:
    output:
        report(
            f"{RESULTS}/tables/cost.html",
            caption="../report/cost.rst",
            category="Cost",
            labels={"table": "cost to read"},
        ),
        report(
            f"{RESULTS}/tables/cost.csv",
            caption="../report/cost.rst",
            category="Cost",
            labels={"table": "cost, every call and network"},
        ),
        multiext(f"{RESULTS}/tables/cost", ".md", ".tex"),
    log:
        f"{RESULTS}/logs/count_cost/cost.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        experiments=list(PLAN.experiments),
        digests=PLAN.model_digests,
        stem=subpath(output[0], strip_suffix=".html"),
    shell:
        "udpm cost {params.experiments:q} --output {params.stem:q} > {log:q} 2>&1"


rule render_samples:
    input:
        PLAN.samples,
    output:
        report(
            f"{RESULTS}/figures/{{experiment}}/seed{{seed}}/samples.png",
            caption="../report/samples.rst",
            category="Figures",
            labels={
                "figure": "samples",
                "experiment": "{experiment}",
                "seed": "{seed}",
            },
        ),
        multiext(
            f"{RESULTS}/figures/{{experiment}}/seed{{seed}}/samples", ".svg", ".csv"
        ),
    log:
        f"{RESULTS}/logs/render_samples/{{experiment}}_seed{{seed}}.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        samples=PLAN.sample_set,
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure samples --output {params.stem:q} -- {params.samples:q} > {log:q} 2>&1"


rule render_chain:
    input:
        f"{RESULTS}/samples/{{experiment}}/seed{{seed}}_chain.npz",
    output:
        report(
            f"{RESULTS}/figures/{{experiment}}/seed{{seed}}/chain.png",
            caption="../report/chain.rst",
            category="Figures",
            labels={
                "figure": "denoising chain",
                "experiment": "{experiment}",
                "seed": "{seed}",
            },
        ),
        multiext(f"{RESULTS}/figures/{{experiment}}/seed{{seed}}/chain", ".svg", ".csv"),
    log:
        f"{RESULTS}/logs/render_chain/{{experiment}}_seed{{seed}}.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure chain --output {params.stem:q} -- {input:q} > {log:q} 2>&1"


rule render_curves:
    input:
        f"{RESULTS}/runs/{{experiment}}/seed{{seed}}/complete.json",
    output:
        report(
            f"{RESULTS}/figures/{{experiment}}/seed{{seed}}/curves.png",
            caption="../report/curves.rst",
            category="Figures",
            labels={
                "figure": "training curves",
                "experiment": "{experiment}",
                "seed": "{seed}",
            },
        ),
        multiext(
            f"{RESULTS}/figures/{{experiment}}/seed{{seed}}/curves", ".svg", ".csv"
        ),
    log:
        f"{RESULTS}/logs/render_curves/{{experiment}}_seed{{seed}}.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        run=subpath(input[0], parent=True),
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure curves --output {params.stem:q} -- {params.run:q}/metrics.jsonl > {log:q} 2>&1"


rule render_schedule:
    input:
        lambda wildcards: (
            f"{RESULTS}/configs/{wildcards.experiment}/seed{PLAN.experiment(wildcards).seeds[0]}.json"
        ),
    output:
        report(
            f"{RESULTS}/figures/{{experiment}}/schedule.png",
            caption="../report/schedule.rst",
            category="Figures",
            labels={"figure": "schedule", "experiment": "{experiment}", "seed": "all"},
        ),
        multiext(f"{RESULTS}/figures/{{experiment}}/schedule", ".svg", ".csv"),
    log:
        f"{RESULTS}/logs/render_schedule/{{experiment}}.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure schedule --output {params.stem:q} -- {input:q} > {log:q} 2>&1"


rule render_forward:
    input:
        config=lambda wildcards: (
            f"{RESULTS}/configs/{wildcards.experiment}/seed{PLAN.experiment(wildcards).seeds[0]}.json"
        ),
        dataset=lambda wildcards: f"{PLAN.dataset(wildcards)}/dataset.json",
    output:
        report(
            f"{RESULTS}/figures/{{experiment}}/forward.png",
            caption="../report/forward.rst",
            category="Figures",
            labels={
                "figure": "forward process",
                "experiment": "{experiment}",
                "seed": "all",
            },
        ),
        multiext(f"{RESULTS}/figures/{{experiment}}/forward", ".svg", ".csv"),
    log:
        f"{RESULTS}/logs/render_forward/{{experiment}}.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        dataset=subpath(input.dataset, parent=True),
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure forward --dataset {params.dataset:q} --output {params.stem:q} -- {input.config:q} > {log:q} 2>&1"
