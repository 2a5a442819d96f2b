# Resolved configurations: small complete files, the only configuration that later jobs read. They are rewritten when
# a key that something is made from has another value than theirs, so that an edit elsewhere reruns nothing.


rule resolve_run:
    output:
        f"{RESULTS}/configs/{{experiment}}/seed{{seed}}.json",
    log:
        f"{RESULTS}/logs/resolve_run/{{experiment}}_seed{{seed}}.log",
    conda:
        "../../envs/udpm.yaml"
    shell:
        "udpm resolve {wildcards.experiment:q} --part run --seed {wildcards.seed:q} --output {output:q} > {log:q} 2>&1"


rule resolve_section:
    output:
        f"{RESULTS}/configs/{{experiment}}/{{section}}.json",
    log:
        f"{RESULTS}/logs/resolve_section/{{experiment}}_{{section}}.log",
    wildcard_constraints:
        section="(selection_)?(sampling|scoring)|latents",
    conda:
        "../../envs/udpm.yaml"
    shell:
        "udpm resolve {wildcards.experiment:q} --part {wildcards.section:q} --output {output:q} > {log:q} 2>&1"


rule resolve_dataset:
    output:
        f"{RESULTS}/configs/datasets/{{dataset}}.json",
    log:
        f"{RESULTS}/logs/resolve_dataset/{{dataset}}.log",
    conda:
        "../../envs/udpm.yaml"
    shell:
        "udpm resolve --dataset {wildcards.dataset:q} --output {output:q} > {log:q} 2>&1"
