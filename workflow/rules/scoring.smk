rule train_extractor:
    input:
        f"{RESULTS}/datasets/{{dataset}}/dataset.json",
    output:
        network=f"{RESULTS}/extractors/{{dataset}}.pt",
        record=f"{RESULTS}/extractors/{{dataset}}.json",
    log:
        f"{RESULTS}/logs/train_extractor/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_extractor/{{dataset}}.tsv"
    conda:
        "../../envs/udpm.yaml"
    threads: 2
    params:
        usage=f"{RESULTS}/benchmarks/train_extractor/{{dataset}}.jsonl",
        dataset=subpath(input[0], parent=True),
    shell:
        "udpm --usage {params.usage:q} extractor --threads 2 --output {output.network:q} -- {params.dataset:q} > {log:q} 2>&1"


# Local rules: nodes that compute seldom have a network. A file that is there already is left as it is. One rule for each
# folder, not a wildcard: a path in the name of a log could lead out of the folder of logs.
for number, (folder, options) in enumerate(PLAN.inception_folders().items(), 1):

    rule:
        name:
            f"fetch_inception_{number}"
        output:
            f"{folder}/{INCEPTION.name}",
        log:
            f"{RESULTS}/logs/fetch_inception/{number}.log",
        localrule: True
        conda:
            "../../envs/udpm.yaml"
        params:
            folder=subpath(output[0], parent=True),
            options=lambda wildcards, options=options: options,
        shell:
            "udpm fetch inception --folder {params.folder:q} {params.options:q} > {log:q} 2>&1"


rule compute_reference:
    input:
        dataset=lambda wildcards: f"{PLAN.dataset(wildcards)}/dataset.json",
        config=f"{RESULTS}/configs/{{experiment}}/scoring.json",
        extractor=PLAN.made_extractor,
    output:
        f"{RESULTS}/references/{{experiment}}.npz",
    log:
        f"{RESULTS}/logs/compute_reference/{{experiment}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compute_reference/{{experiment}}.tsv"
    wildcard_constraints:
        experiment=PLAN.any_scored,
    conda:
        "../../envs/udpm.yaml"
    threads: lambda wildcards: PLAN.experiment(wildcards).scoring.threads
    resources:
        **JOBS.scoring,
    params:
        usage=f"{RESULTS}/benchmarks/compute_reference/{{experiment}}.jsonl",
        dataset=subpath(input.dataset, parent=True),
        extractor=PLAN.extractor,
        features=f"{RESULTS}/features",
    shell:
        "udpm --usage {params.usage:q} reference --extractor {params.extractor:q} --config {input.config:q}"
        " --features {params.features:q} --output {output:q} -- {params.dataset:q} > {log:q} 2>&1"


ruleorder: import_reference > compute_reference


# Where `scoring.reference` names statistics that others published.
rule import_reference:
    input:
        statistics=lambda wildcards: PLAN.experiment(wildcards).scoring.reference,
        config=f"{RESULTS}/configs/{{experiment}}/scoring.json",
        extractor=PLAN.made_extractor,
    output:
        f"{RESULTS}/references/{{experiment}}.npz",
    log:
        f"{RESULTS}/logs/import_reference/{{experiment}}.log",
    wildcard_constraints:
        experiment=PLAN.any_published,
    conda:
        "../../envs/udpm.yaml"
    params:
        extractor=PLAN.extractor,
    shell:
        "udpm reference --import --extractor {params.extractor:q} --config {input.config:q}"
        " --output {output:q} -- {input.statistics:q} > {log:q} 2>&1"


rule score_samples:
    input:
        samples=PLAN.samples,
        reference=PLAN.reference,
        dataset=lambda wildcards: f"{PLAN.dataset(wildcards)}/dataset.json",
        config=PLAN.scoring,
        extractor=PLAN.made_extractor,
    output:
        f"{RESULTS}/scores/{{experiment}}/seed{{seed}}.json",
    log:
        f"{RESULTS}/logs/score_samples/{{experiment}}_seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_samples/{{experiment}}_seed{{seed}}.tsv"
    wildcard_constraints:
        experiment=PLAN.any_scored,
    conda:
        "../../envs/udpm.yaml"
    threads: lambda wildcards: PLAN.experiment(wildcards).scoring.threads
    resources:
        **JOBS.scoring,
    params:
        usage=f"{RESULTS}/benchmarks/score_samples/{{experiment}}_seed{{seed}}.jsonl",
        samples=PLAN.sample_set,
        dataset=subpath(input.dataset, parent=True),
        extractor=PLAN.extractor,
        features=f"{RESULTS}/features",
    shell:
        "udpm --usage {params.usage:q} score --samples {params.samples:q} --reference {input.reference:q} --extractor {params.extractor:q}"
        " --dataset {params.dataset:q} --config {input.config:q} --features {params.features:q}"
        " --output {output:q} > {log:q} 2>&1"


# What the numbers are to be read against: real images that training never saw (floor), and noise (ceiling).
rule score_yardstick:
    input:
        reference=f"{RESULTS}/references/{{experiment}}.npz",
        dataset=lambda wildcards: f"{PLAN.dataset(wildcards)}/dataset.json",
        config=f"{RESULTS}/configs/{{experiment}}/scoring.json",
        extractor=PLAN.made_extractor,
    output:
        f"{RESULTS}/scores/{{experiment}}/{{yardstick}}.json",
    log:
        f"{RESULTS}/logs/score_yardstick/{{experiment}}_{{yardstick}}.log",
    wildcard_constraints:
        experiment=PLAN.any_scored,
        yardstick="heldout|noise",
    conda:
        "../../envs/udpm.yaml"
    threads: lambda wildcards: PLAN.experiment(wildcards).scoring.threads
    resources:
        **JOBS.scoring,
    params:
        dataset=subpath(input.dataset, parent=True),
        extractor=PLAN.extractor,
        features=f"{RESULTS}/features",
        subject=PLAN.yardstick_options,
    shell:
        "udpm score {params.subject:q} --reference {input.reference:q} --extractor {params.extractor:q}"
        " --dataset {params.dataset:q} --config {input.config:q} --features {params.features:q}"
        " --output {output:q} > {log:q} 2>&1"
