# The paper's tables: published numbers beside measured ones. Of the study's experiments all is made that they need; what
# the study does not list is shown as far as it is there, and as "not run" where it is not.
rule render_paper_table:
    input:
        PAPER.published,
        PAPER.material,
    output:
        report(
            f"{RESULTS}/tables/paper/{{table}}.html",
            caption="../report/paper.rst",
            category="Paper",
            labels={"table": "{table}", "format": "to read"},
        ),
        report(
            f"{RESULTS}/tables/paper/{{table}}.csv",
            caption="../report/paper.rst",
            category="Paper",
            labels={"table": "{table}", "format": "full precision"},
        ),
        multiext(f"{RESULTS}/tables/paper/{{table}}", ".md", ".tex"),
    log:
        f"{RESULTS}/logs/render_paper_table/{{table}}.log",
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


# Freshly initialised networks: needs neither weights nor data.
rule measure_speed:
    input:
        lambda wildcards: (
            f"{RESULTS}/configs/{wildcards.experiment}/seed{PLAN.experiment(wildcards).seeds[0]}.json"
        ),
    output:
        f"{RESULTS}/speed/{{experiment}}.json",
    log:
        f"{RESULTS}/logs/measure_speed/{{experiment}}.log",
    conda:
        "../../envs/udpm.yaml"
    threads: lambda wildcards: PLAN.experiment(wildcards).sampling.threads
    resources:
        **JOBS.sampling,
    shell:
        "udpm bench sample {wildcards.experiment:q} --output {output:q} > {log:q} 2>&1"


rule render_tradeoff:
    input:
        published=PAPER.published_files,
        scores=PAPER.tradeoff_scores,
    output:
        report(
            f"{RESULTS}/figures/paper/tradeoff.png",
            caption="../report/tradeoff.rst",
            category="Paper",
            labels={"table": "FID against multiply-adds", "format": "figure"},
        ),
        multiext(f"{RESULTS}/figures/paper/tradeoff", ".svg", ".csv"),
    log:
        f"{RESULTS}/logs/render_tradeoff/tradeoff.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        results=subpath(output[0], ancestor=3),
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure tradeoff --results {params.results:q} --output {params.stem:q} > {log:q} 2>&1"


rule render_neighbours:
    input:
        samples=PLAN.samples,
        dataset=lambda wildcards: f"{PLAN.dataset(wildcards)}/dataset.json",
    output:
        report(
            f"{RESULTS}/figures/{{experiment}}/seed{{seed}}/neighbours.png",
            caption="../report/neighbours.rst",
            category="Figures",
            labels={
                "figure": "nearest training images",
                "experiment": "{experiment}",
                "seed": "{seed}",
            },
        ),
        multiext(
            f"{RESULTS}/figures/{{experiment}}/seed{{seed}}/neighbours", ".svg", ".csv"
        ),
    log:
        f"{RESULTS}/logs/render_neighbours/{{experiment}}_seed{{seed}}.log",
    conda:
        "../../envs/udpm.yaml"
    resources:
        **JOBS.neighbours,
    params:
        samples=PLAN.sample_set,
        dataset=subpath(input.dataset, parent=True),
        stem=subpath(output[0], strip_suffix=".png"),
    shell:
        "udpm figure neighbours --dataset {params.dataset:q} --output {params.stem:q} -- {params.samples:q} > {log:q} 2>&1"


# Made of the study's run records and of all scores that the tables take: what is not there is listed as missing.
rule summarize:
    input:
        runs=PAPER.runs,
        scores=PAPER.all_scores,
    output:
        report(
            f"{RESULTS}/overview.html",
            caption="../report/overview.rst",
            category="Overview",
            labels={"page": "what ran, and what came of it"},
        ),
        f"{RESULTS}/summary.md",
    log:
        f"{RESULTS}/logs/summarize/summary.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        experiments=PAPER.experiments,
        folder=subpath(output[0], parent=True),
    shell:
        "udpm summary {params.experiments:q} --results {params.folder:q} --output {params.folder:q} > {log:q} 2>&1"


rule write_card:
    input:
        run=f"{RESULTS}/runs/{{experiment}}/seed{{seed}}/complete.json",
        config=f"{RESULTS}/configs/{{experiment}}/seed{{seed}}.json",
        scores=PAPER.run_scores,
    output:
        f"{RESULTS}/runs/{{experiment}}/seed{{seed}}/README.md",
    log:
        f"{RESULTS}/logs/write_card/{{experiment}}_seed{{seed}}.log",
    conda:
        "../../envs/udpm.yaml"
    params:
        run=subpath(input.run, parent=True),
        scores=lambda wildcards, input: [
            word for path in input.scores for word in ("--score", path)
        ],
    shell:
        "udpm card {params.scores:q} --output {output:q} -- {params.run:q} > {log:q} 2>&1"
