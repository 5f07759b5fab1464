{{/* What a planner is started with. */}}

{{- define "rfork-planner.image" -}}
{{- $image := .Values.image }}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* Most replicas that there may be. */}}
{{- define "rfork-planner.replicas" -}}
{{- $least := eq .Values.database.type "postgres" | ternary 2 1 }}
{{- if kindIs "invalid" .Values.replicas }}{{ $least }}{{ else }}{{ int .Values.replicas }}{{ end }}
{{- end }}

{{/* `::` takes IPv4, too, and fails on a node without IPv6; so it is taken where the Service has IPv6. */}}
{{- define "rfork-planner.host" -}}
{{- $policy := .Values.service.ipFamilyPolicy | default "SingleStack" }}
{{- $six := or (has "IPv6" .Values.service.ipFamilies) (ne $policy "SingleStack") }}
{{- .Values.planner.host | default (ternary "::" "0.0.0.0" $six) }}
{{- end }}

{{- define "rfork-planner.port" -}}
{{ .Values.planner.port | default 1223 | int }}
{{- end }}

{{/* The name of the port where probes are answered. */}}
{{- define "rfork-planner.probePort" -}}
{{ empty .Values.planner.probePort | ternary "http" "probes" }}
{{- end }}

{{/* The Secret with the planner's certificate; nothing without TLS. */}}
{{- define "rfork-planner.tlsSecret" -}}
{{- if .Values.tls.certificate.enabled }}{{ include "rfork-planner.named" (list . "tls") }}
{{- else }}{{ .Values.tls.secret.name }}
{{- end }}
{{- end }}

{{/* Its name in the cluster: with TLS one that its certificate has. */}}
{{- define "rfork-planner.serverName" -}}
{{ include "rfork-planner.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{/* By which scheme probes are answered at their port. A kubelet looks at no certificate. */}}
{{- define "rfork-planner.probeScheme" -}}
{{- if and (include "rfork-planner.tlsSecret" .) (empty .Values.planner.probePort) }}HTTPS{{ end }}
{{- end }}

{{- define "rfork-planner.args" -}}
- planner
{{ include "rfork-planner.flags" . }}
{{- range .Values.extraArgs }}
- {{ quote . }}
{{- end }}
{{- end }}

{{/* What the chart itself sets. Each value of `planner` is the flag of its name. A number comes as a float, which must not
be written as 1e+06. */}}
{{- define "rfork-planner.flags" -}}
- {{ printf "--host=%s" (include "rfork-planner.host" .) | quote }}
- --port={{ include "rfork-planner.port" . }}
{{- range $name, $value := omit .Values.planner "host" "port" }}
{{- $flag := regexReplaceAll "([A-Z])" $name "-${1}" | lower }}
{{- if kindIs "bool" $value }}
{{- if $value }}
- --{{ $flag }}
{{- end }}
{{- else if kindIs "slice" $value }}
{{- if $value }}
- {{ printf "--%s=%s" $flag (join "," $value) | quote }}
{{- end }}
{{- else if kindIs "string" $value }}
- {{ printf "--%s=%s" $flag $value | quote }}
{{- else if not (kindIs "invalid" $value) }}
- --{{ $flag }}={{ int64 $value }}
{{- end }}
{{- end }}
{{- if eq .Values.database.type "postgres" }}
- --database-url-file=/etc/rfork/database/url
{{- else }}
{{- if kindIs "invalid" .Values.planner.maxMemoryMib }}
{{- with include "rfork-planner.limitMib" . }}
- --max-memory-mib={{ mulf . 0.375 | int64 | max 1 | min 1048576 }}
{{- end }}
{{- end }}
- --database-url=sqlite:///var/lib/rfork/planner.db
{{- end }}
{{- with .Values.identity.tokens.secret }}
{{- if .name }}
- {{ printf "--token-file=/etc/rfork/tokens/%s" .key | quote }}
{{- end }}
{{- end }}
{{- if include "rfork-planner.tlsSecret" . }}
- --tls-cert-file=/etc/rfork/certificate/tls.crt
- --tls-key-file=/etc/rfork/certificate/tls.key
{{- with .Values.tls.clientCA.secret }}
{{- if .name }}
- {{ printf "--tls-client-ca-file=/etc/rfork/client-ca/%s" .key | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- if include "rfork-planner.rules" . }}
- --settings-file=/etc/rfork/settings/settings.toml
{{- end }}
{{- end }}

{{/* MiB of memory that the container may take, of a quantity as `512Mi`, `0.5Gi` or `5e8`; nothing without a limit. */}}
{{- define "rfork-planner.limitMib" -}}
{{- with ((.Values.resources | default dict).limits | default dict).memory }}
{{- $quantity := toString . }}
{{- $units := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18
  "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 }}
{{- $unit := regexFind "[A-Za-z]+$" $quantity }}
{{- divf (mulf (trimSuffix $unit $quantity | float64) (get $units $unit | default 1.0)) 1048576 | int64 }}
{{- end }}
{{- end }}

{{/* The settings file. Strings are written as JSON's, which TOML reads the same; nothing is written for no rules. */}}
{{- define "rfork-planner.rules" -}}
{{- range $kind, $rules := .Values.rules }}
{{- range $rules }}
[[{{ snakecase $kind }}]]
{{- range $name, $value := . }}
{{ $name }} = {{ if or (kindIs "string" $value) (kindIs "slice" $value) }}{{ toJson $value }}{{ else }}{{ int64 $value }}{{ end }}
{{- end }}
{{ end }}
{{- end }}
{{- end }}

{{/* A Secret with the URL, mounted as the file `url`: (dict "name" "key"). */}}
{{- define "rfork-planner.databaseVolume" -}}
name: database
secret:
  secretName: {{ .name | quote }}
  defaultMode: 0440
  items:
    - key: {{ .key | quote }}
      path: url
{{- end }}

{{/* A Secret's key as a file of its name; it changes with the Secret: (list VOLUME (dict "name" "key")). */}}
{{- define "rfork-planner.secretVolume" -}}
{{- $secret := index . 1 -}}
name: {{ index . 0 }}
secret:
  secretName: {{ $secret.name | quote }}
  defaultMode: 0440
  items:
    - key: {{ $secret.key | quote }}
      path: {{ $secret.key | quote }}
{{- end }}

{{/* What reads the keys of the cluster's tokens: a ServiceAccount token, which the kubelet replaces, and the cluster's CA. */}}
{{- define "rfork-planner.kubernetesVolume" -}}
name: kubernetes
projected:
  defaultMode: 0440
  sources:
    - serviceAccountToken:
        path: token
        expirationSeconds: 3600
    - configMap:
        name: kube-root-ca.crt
        items:
          - key: ca.crt
            path: ca.crt
{{- end }}

{{/* Where the planner's URL is, as JSON. */}}
{{- define "rfork-planner.databaseSecret" -}}
{{- if .Values.database.cloudNativePG.enabled -}}
{{ dict "name" (printf "%s-app" (include "rfork-planner.cluster" .)) "key" "uri" | toJson }}
{{- else -}}
{{ dict "name" .Values.database.postgres.secret.name "key" .Values.database.postgres.secret.key | toJson }}
{{- end }}
{{- end }}

{{/* What every pod of the chart has. */}}
{{- define "rfork-planner.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}

{{/* What every container of the chart has. */}}
{{- define "rfork-planner.container" -}}
image: {{ include "rfork-planner.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Drain, then the longest request (9 s), heartbeats that were gathered, and traces (3 s). */}}
{{- define "rfork-planner.grace" -}}
{{- $drain := kindIs "invalid" .Values.planner.drainSec | ternary 5 .Values.planner.drainSec }}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds }}{{ add (int64 $drain) 20 }}
{{- else }}{{ int64 .Values.terminationGracePeriodSeconds }}
{{- end }}
{{- end }}
