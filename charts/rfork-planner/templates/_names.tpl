{{/* Names of objects. Helm lets a release's name have 53 characters, begin with a digit and have dots; a Service's may
have 63, begins with a letter and has no dots. */}}

{{- define "rfork-planner.chart" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "rfork-planner.fullname" -}}
{{- $release := .Release.Name }}
{{- if contains "." $release }}
{{- /* The hash keeps `a.b` and `a-b` two. */}}
{{- $release = printf "%s-%s" ($release | replace "." "-" | trunc 44 | trimSuffix "-") ($release | sha256sum | trunc 8) }}
{{- end }}
{{- $chart := include "rfork-planner.chart" . }}
{{- $name := .Values.fullnameOverride }}
{{- if not $name }}
{{- $name = $release | contains $chart | ternary $release (printf "%s-%s" $release $chart) }}
{{- end }}
{{- if regexMatch "^[0-9]" $name }}
{{- $name = printf "r-%s" $name }}
{{- end }}
{{- $name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The release's name with an end that tells what it is: (list CONTEXT END [MOST]). Where it is cut, it has a hash,
so that two long names that begin alike stay two. */}}
{{- define "rfork-planner.named" -}}
{{- $name := include "rfork-planner.fullname" (index . 0) }}
{{- $end := printf "-%s" (index . 1) }}
{{- $most := 63 }}
{{- if gt (len .) 2 }}{{ $most = index . 2 }}{{ end }}
{{- $room := sub $most (len $end) | int }}
{{- if gt (len $name) $room }}
{{- $name = printf "%s-%s" ($name | trunc (sub $room 9 | int) | trimSuffix "-") ($name | sha256sum | trunc 8) }}
{{- end }}
{{- $name }}{{ $end }}
{{- end }}

{{- define "rfork-planner.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "rfork-planner.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{/* The operator allows 50 characters for a Cluster, whose objects have longer names. */}}
{{- define "rfork-planner.cluster" -}}
{{ include "rfork-planner.named" (list . "db" 50) }}
{{- end }}

{{/* Labels of every object. */}}
{{- define "rfork-planner.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/name: {{ include "rfork-planner.chart" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: rfork
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* These with an object's own, which win: (list CONTEXT LABELS). Kubernetes refuses a key that stands twice. */}}
{{- define "rfork-planner.labelsWith" -}}
{{- merge (dict) (index . 1) (include "rfork-planner.labels" (index . 0) | fromYaml) | toYaml }}
{{- end }}

{{/* What the pods of a component are found by: (list CONTEXT COMPONENT). Only the component `planner` serves. */}}
{{- define "rfork-planner.selector" -}}
app.kubernetes.io/name: {{ include "rfork-planner.chart" (index . 0) | quote }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of a component's pods: (list CONTEXT COMPONENT). */}}
{{- define "rfork-planner.podLabels" -}}
{{- $values := (index . 0).Values }}
{{- merge (include "rfork-planner.selector" . | fromYaml) $values.podLabels $values.commonLabels | toYaml }}
{{- end }}
