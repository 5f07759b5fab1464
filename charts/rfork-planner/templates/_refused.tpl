{{/* Values that do not fit each other; what is wrong by itself, values.schema.json refuses. */}}
{{- define "rfork-planner.refuse" -}}
{{- $values := .Values }}
{{- $sqlite := ne $values.database.type "postgres" }}
{{- $made := $values.database.cloudNativePG.enabled }}
{{- $secret := $values.database.postgres.secret.name }}
{{- if $sqlite }}
{{- if $values.autoscaling.enabled }}
{{- fail "autoscaling.enabled: a SQLite file serves one planner; set database.type to postgres" }}
{{- end }}
{{- if $made }}
{{- fail "database.cloudNativePG.enabled: set database.type to postgres" }}
{{- end }}
{{- if $values.database.postgres.tls.secretName }}
{{- fail "database.postgres.tls.secretName: it is not used with SQLite; set database.type to postgres" }}
{{- end }}
{{- if $secret }}
{{- fail "database.postgres.secret.name: it is not used with SQLite; set database.type to postgres" }}
{{- end }}
{{- if $values.migration.job.enabled }}
{{- fail "migration.job.enabled: with SQLite the planner itself migrates; set database.type to postgres" }}
{{- end }}
{{- else }}
{{- if and $made $secret }}
{{- fail "database.cloudNativePG.enabled: database.postgres.secret.name already says where the database is; set one of them" }}
{{- end }}
{{- if not (or $made $secret) }}
{{- fail "database.postgres.secret.name: name the Secret that holds the database's URL, or set database.cloudNativePG.enabled" }}
{{- end }}
{{- $rolling := $values.rollingUpdate | default dict }}
{{- $none := list "0" "0%" }}
{{- if and (has (toString $rolling.maxSurge) $none) (has (toString $rolling.maxUnavailable) $none) }}
{{- fail "rollingUpdate.maxSurge: with rollingUpdate.maxUnavailable 0, too, no planner could ever be replaced" }}
{{- end }}
{{- if and $made $values.migration.job.enabled }}
{{- fail "migration.job.enabled: the database of database.cloudNativePG is not there before the release is installed; let planners migrate" }}
{{- end }}
{{- end }}
{{- with include "rfork-planner.limitMib" . }}
{{- if and $sqlite (ge (int64 ($values.planner.maxMemoryMib | default 0)) (int64 .)) }}
{{- fail (printf "planner.maxMemoryMib: %d is not below resources.limits.memory (%s MiB): the planner would be killed before it refuses" (int64 $values.planner.maxMemoryMib) .) }}
{{- end }}
{{- end }}
{{- if and (eq ($values.planner.authMode | default "") "enforce") (not $values.identity.tokens.secret.name) }}
{{- fail "planner.authMode: with enforce nobody could ask for anything; name the Secret of identity.tokens" }}
{{- end }}
{{- if and $values.identity.kubernetes.enabled (not $values.identity.tokens.secret.name) }}
{{- fail "identity.kubernetes.enabled: the file of tokens says which of the cluster's tokens are whose; name the Secret of identity.tokens" }}
{{- end }}
{{- if and $values.tls.certificate.enabled $values.tls.secret.name }}
{{- fail "tls.certificate.enabled: tls.secret.name already says where the certificate is; set one of them" }}
{{- end }}
{{- if and $values.tls.certificate.enabled (not $values.tls.certificate.issuerRef.name) }}
{{- fail "tls.certificate.issuerRef: name cert-manager's Issuer, as {name: NAME, kind: ClusterIssuer}" }}
{{- end }}
{{- if and $values.tls.clientCA.secret.name (not (include "rfork-planner.tlsSecret" .)) }}
{{- fail "tls.clientCA.secret.name: the planner speaks no TLS; set tls.secret.name or tls.certificate.enabled" }}
{{- end }}
{{- if and $values.tls.ca.secret.name (not (include "rfork-planner.tlsSecret" .)) }}
{{- fail "tls.ca.secret.name: the planner speaks no TLS; set tls.secret.name or tls.certificate.enabled" }}
{{- end }}
{{- $budget := $values.podDisruptionBudget }}
{{- if and $budget.enabled (kindIs "invalid" $budget.maxUnavailable) (kindIs "invalid" $budget.minAvailable) }}
{{- fail "podDisruptionBudget.maxUnavailable: set this or podDisruptionBudget.minAvailable" }}
{{- end }}
{{- if and $values.monitoring.serviceMonitor.enabled $values.monitoring.podMonitor.enabled }}
{{- fail "monitoring.podMonitor.enabled: with monitoring.serviceMonitor.enabled every planner would be scraped twice; set one of them" }}
{{- end }}
{{- range $kind := list "serviceMonitor" "podMonitor" }}
{{- $monitor := get $values.monitoring $kind }}
{{- with $monitor.scrapeTimeout }}
{{- $begin := toDate "2006" "2000" }}
{{- if lt ($begin | dateModify $monitor.interval | unixEpoch | int64) ($begin | dateModify . | unixEpoch | int64) }}
{{- fail (printf "monitoring.%s.scrapeTimeout: %s is more than interval (%s); Prometheus would not scrape at all" $kind . $monitor.interval) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and $values.autoscaling.enabled (lt (int $values.autoscaling.maxReplicas) (int $values.autoscaling.minReplicas)) }}
{{- fail "autoscaling.maxReplicas: it is less than autoscaling.minReplicas" }}
{{- end }}
{{- if and $values.autoscaling.enabled (kindIs "invalid" $values.autoscaling.targetCPUUtilizationPercentage) (kindIs "invalid" $values.autoscaling.requests.perSecond) }}
{{- fail "autoscaling.targetCPUUtilizationPercentage: set this or autoscaling.requests.perSecond" }}
{{- end }}
{{- $resources := $values.resources | default dict }}
{{- $processor := or ($resources.requests | default dict).cpu ($resources.limits | default dict).cpu }}
{{- if and $values.autoscaling.enabled $values.autoscaling.targetCPUUtilizationPercentage (not $processor) }}
{{- fail "autoscaling.targetCPUUtilizationPercentage: it is a part of resources.requests.cpu, which is not set" }}
{{- end }}
{{- if eq (int ($values.planner.probePort | default 0)) (int (include "rfork-planner.port" .)) }}
{{- fail "planner.probePort: it is planner.port, too; choose another one, or leave it out: probes are answered there already" }}
{{- end }}
{{- $service := $values.service }}
{{- range $name, $types := dict "nodePort" "NodePort or LoadBalancer" "externalTrafficPolicy" "NodePort or LoadBalancer"
  "loadBalancerClass" "LoadBalancer" "loadBalancerSourceRanges" "LoadBalancer" }}
{{- if and (get $service $name) (not (contains $service.type $types)) }}
{{- fail (printf "service.%s: set service.type to %s, or leave it out" $name $types) }}
{{- end }}
{{- end }}
{{- if eq $service.clusterIP "None" }}
{{- if ne $service.type "ClusterIP" }}
{{- fail (printf "service.clusterIP: None is for service.type ClusterIP, not %s" $service.type) }}
{{- end }}
{{- if ne (int $service.port) (int (include "rfork-planner.port" .)) }}
{{- fail (printf "service.port: without an address of the Service's own, pods are asked at their port; set it to planner.port (%s)" (include "rfork-planner.port" .)) }}
{{- end }}
{{- end }}
{{- if and (gt (len ($service.ipFamilies | default list)) 1) (eq ($service.ipFamilyPolicy | default "SingleStack") "SingleStack") }}
{{- fail "service.ipFamilyPolicy: for two service.ipFamilies set PreferDualStack or RequireDualStack" }}
{{- end }}
{{- $grace := int (include "rfork-planner.grace" .) }}
{{- $drain := int (kindIs "invalid" $values.planner.drainSec | ternary 5 $values.planner.drainSec) }}
{{- if lt $grace (add $drain 10 | int) }}
{{- fail (printf "terminationGracePeriodSeconds: %d is too short for planner.drainSec (%d) and requests that run (9 s)" $grace $drain) }}
{{- end }}
{{- /* A flag that stands twice ends the planner at its start, and a variable beside its flag is passed over in silence. The
drain has to be in the grace period, and which database it is in all the rest. */}}
{{- $taken := list "drain-sec" "database-url" "database-url-file" "token-file" "tls-cert-file" "tls-key-file" "tls-client-ca-file" }}
{{- range include "rfork-planner.flags" . | fromYamlArray }}
{{- $taken = append $taken (regexFind "[a-z0-9][-a-z0-9]*" .) }}
{{- end }}
{{- $elsewhere := dict "database-url" "database" "database-url-file" "database" "settings-file" "rules" "token-file" "identity.tokens.secret" "tls-cert-file" "tls" "tls-key-file" "tls" "tls-client-ca-file" "tls.clientCA" }}
{{- $told := dict }}
{{- range $argument := $values.extraArgs }}
{{- $told = set $told $argument (regexFind "^--[-a-z0-9]+" $argument | trimPrefix "--") }}
{{- end }}
{{- range $values.extraEnv }}
{{- $told = set $told .name (regexFind "^RFORK_CFG_.+" .name | trimPrefix "RFORK_CFG_" | lower | replace "_" "-") }}
{{- end }}
{{- range $what, $flag := $told }}
{{- if has $flag $taken }}
{{- $value := printf "planner.%s" ($flag | replace "-" "_" | camelcase | untitle) }}
{{- $from := hasPrefix "--" $what | ternary "extraArgs" "extraEnv" }}
{{- fail (printf "%s: %s is what the chart itself tells planners; set %s" $from $what (get $elsewhere $flag | default $value)) }}
{{- end }}
{{- end }}
{{- range $values.extraVolumes }}
{{- if has .name (list "database" "tls" "data" "settings" "tokens" "certificate" "client-ca" "kubernetes") }}
{{- fail (printf "extraVolumes: the chart itself may have a volume %s; choose another name" .name) }}
{{- end }}
{{- end }}
{{- if and $values.ingress.enabled (not $values.ingress.hosts) }}
{{- fail "ingress.hosts: name the hosts under which the planner is reached" }}
{{- end }}
{{- if and $values.httpRoute.enabled (not $values.httpRoute.parentRefs) }}
{{- fail "httpRoute.parentRefs: name the Gateways that it belongs to" }}
{{- end }}
{{- $known := list }}
{{- range (.Files.Get "files/alerts.yaml" | fromYaml).groups }}
{{- range .rules }}{{ $known = append $known .alert }}{{ end }}
{{- end }}
{{- range $values.monitoring.prometheusRule.disabled }}
{{- if not (has . $known) }}
{{- fail (printf "monitoring.prometheusRule.disabled: there is no alert %s" .) }}
{{- end }}
{{- end }}
{{- end }}
