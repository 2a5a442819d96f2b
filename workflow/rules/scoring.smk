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
        "udpm --usage {params.usage} extractor {params.dataset} --threads 2 --output {output.network} > {log} 2>&1"


# A local rule: nodes that compute seldom have a network. A file that is there already is left as it is.
rule fetch_inception:
    output:
        "{folder}/inception-2015-12-05.pt",
    log:
        f"{RESULTS}/logs/fetch_inception/{{folder}}.log",
    wildcard_constraints:
        folder=PLAN.any_inception_folder,
    conda:
        "../../envs/udpm.yaml"
    params:
        options=PLAN.inception_options,
    shell:
        "udpm fetch inception --folder {wildcards.folder} {params.options} > {log} 2>&1"


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
        "udpm --usage {params.usage} reference {params.dataset} --extractor {params.extractor} --config {input.config}"
        " --features {params.features} --output {output} > {log} 2>&1"


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
        "udpm reference {input.statistics} --import --extractor {params.extractor} --config {input.config}"
        " --output {output} > {log} 2>&1"


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
        "udpm --usage {params.usage} score --samples {params.samples} --reference {input.reference} --extractor {params.extractor}"
        " --dataset {params.dataset} --config {input.config} --features {params.features}"
        " --output {output} > {log} 2>&1"


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
        subject=lambda wildcards: (
            "--heldout"
            if wildcards.yardstick == "heldout"
            else f"--noise {PLAN.experiment(wildcards).sampling.count}"
        ),
    shell:
        "udpm score {params.subject} --reference {input.reference} --extractor {params.extractor}"
        " --dataset {params.dataset} --config {input.config} --features {params.features}"
        " --output {output} > {log} 2>&1"
